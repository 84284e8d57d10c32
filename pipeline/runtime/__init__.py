"""What every part needs of the machine: files, processes, the terminal, errors."""
