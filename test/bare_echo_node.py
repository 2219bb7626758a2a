"""The least a ROS node can do with an image: answer each with a message that has its header.

What the tracker node costs beyond this, and beyond its computing, is what it must account for.
"""

from __future__ import annotations

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from ostrack_ros.msg import Track
from ostrack_ros.nodes.memory import keep_image_buffers


class EchoNode(Node):
    def __init__(self) -> None:
        super().__init__("echo")
        self._answers = self.create_publisher(Track, "~/track", 10)
        self.create_subscription(Image, "echo/image", self._answer, qos_profile_sensor_data)

    def _answer(self, image: Image) -> None:
        self._answers.publish(Track(header=image.header))


def main() -> None:
    # The same allocator as in the tracker node: the comparison is about the node alone.
    keep_image_buffers()
    rclpy.init()
    node = EchoNode()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
