"""`python -m emorl_cli` is `emorl`."""

from emorl_cli.main import main

raise SystemExit(main())
