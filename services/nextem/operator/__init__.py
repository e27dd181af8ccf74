"""The operator: experiments as Kubernetes objects, carried out by the steering service."""
