"""Features of videos: windows in, what a frozen encoder makes of them out, in files that say how they were made."""
