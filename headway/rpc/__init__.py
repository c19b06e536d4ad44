"""What all gRPC code shares: servers, channels, conversion, errors."""
