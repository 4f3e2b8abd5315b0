"""What a run needs beside the two engines: nothing here is imported by users."""
