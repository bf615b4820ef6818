"""Driving with the real `carla` client, against a real CARLA server or the stand-in server in `standin`."""
