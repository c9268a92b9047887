"""Floor 2: who gives the reward: rules and gold rewards on text, reward models on tokens."""
