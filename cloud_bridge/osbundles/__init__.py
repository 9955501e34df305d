"""Images of the appliance's system as update bundles: read, published beside the models, known to rollouts."""
