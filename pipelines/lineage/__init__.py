"""What went into what: artefact trees and the seconds of source video behind a checkpoint, from files alone."""
