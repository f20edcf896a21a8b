"""What other libraries have, in the form of this one, and back."""
