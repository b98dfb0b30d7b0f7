"""Where private keys live. Today: PEM files."""
