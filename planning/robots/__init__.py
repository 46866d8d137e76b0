"""Drivers: everything a robot is to the rest of the house is `robots.robot.Robot`."""
