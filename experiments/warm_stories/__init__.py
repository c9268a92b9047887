"""Which claims of WARM hold for a pre-trained model and labels that people gave?"""
