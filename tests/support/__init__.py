"""What several tests share: fixtures by hand, attackers, oracles."""
