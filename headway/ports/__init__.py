"""What Headway needs from the world. Adapters fulfil these; shells are built on them."""
