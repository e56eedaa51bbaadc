"""What every room uses: the user's mistakes as errors, atomic files, several processes, absent packages."""
