"""The control plane's calls, in the contract's messages: common ground of SDK and command line."""
