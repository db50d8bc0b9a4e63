"""The trainer's commands: they parse and print, the other files do the work. One file a command."""
