"""The parts of a run that both engines share. Users import nothing from here."""
