"""The nouns of the OCI image-spec. Pure: no network, no subprocess, no environment, no clock."""
