"""The command line: parse, one flow call, render. One file per command group."""
