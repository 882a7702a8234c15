"""What a report or a message is good for: gates, comparisons, a look at one update, a monitor."""
