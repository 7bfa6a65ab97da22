"""polytask: one model that does many tasks, through its whole life.

Rooms are imported by name (`from polytask.balance import Balancer, PCGrad`); importing the
package itself loads nothing but this file, so it costs next to nothing.
"""

__version__ = "0.1.0"
