"""Where images live: a registry or an OCI image layout, behind one protocol."""
