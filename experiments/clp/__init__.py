"""Do conditional language policies beat Rewarded Soups at equal compute?"""
