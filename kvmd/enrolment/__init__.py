"""How this host joins the fleet: a bundle of its keys and settings is checked and installed, or keys are made and a request sent."""
