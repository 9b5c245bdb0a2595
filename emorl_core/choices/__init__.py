"""Records of which draft a person took, without the drafts' text, and the weights learned from them."""
