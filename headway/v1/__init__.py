"""Generated from proto/headway/v1 by `make proto`. Do not edit."""
