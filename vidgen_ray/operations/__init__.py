"""What operators ask: is every node well, and how large must the cluster be?"""
