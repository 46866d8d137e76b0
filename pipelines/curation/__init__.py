"""Curation: from folders of video to a weighted, explained set of distinct clips."""
