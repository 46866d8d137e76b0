"""What `tubelet lineage` answers: about artefacts, clips, videos and groups of them."""
