"""A small server that the unmodified `carla` client connects to, in place of the real simulator.

`world` is the simulation and knows no sockets, `sensors` says what a sensor sees in it, `wire` turns both
into CARLA's messages and back, `server` carries those over TCP. Physics are kinematic, pictures schematic,
the ground is what OpenDRIVE says; nothing here was compared with the Unreal server. The server listens on
this machine only, unless told otherwise; CARLA's Traffic Manager, in the client's process, listens on all
interfaces.
"""
