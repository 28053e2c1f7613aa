"""Studies that many processes share: numbered chunks, who takes them, and what is done with them at the end."""
