"""The controller: publishes register and deploy events, and shows what the hosts make of them."""
