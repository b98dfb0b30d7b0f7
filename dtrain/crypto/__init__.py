"""Keys and bytes: RSA identities, signature schemes, the AES-CBC file format. Pure: no files, no network."""
