"""How the mini teacher is made: its answers, its untrained checkpoint, its card."""
