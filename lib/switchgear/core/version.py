"""Which version this is: the one place where it stands. The package's metadata say the same, but reading them costs megabytes."""

VERSION = "0.1.0"
