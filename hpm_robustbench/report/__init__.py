"""What a terminal shows: cards, screens, models and facts as plain text. No torch."""
