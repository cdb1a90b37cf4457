"""Texts in OpenAI's JSON, as models on the device and endpoints speak it: requests, replies, events. No I/O."""
