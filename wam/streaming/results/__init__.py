"""What a merge leaves: files written in place and seen when whole, hashes and manifest, what survived, a summary."""
