"""What every pool behind the seam does alike."""
