"""The credentials of the fleet: kept sealed, handed out to the hosts they are for, and taken back."""
