"""M87*, 11 April 2017: images from the closure quantities of the Event Horizon Telescope."""
