"""What every room may use: errors for the user, files, processes of `torchrun`, devices, commands, options."""
