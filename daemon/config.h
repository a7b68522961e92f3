// What the daemon is told: the values of all settings. See settings.h for
// where they come from and docs/configuration.md for what they mean.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "pkg/manager/types.h"
#include "pkg/transfer/options.h"

namespace bim::daemon {

// What Longhorn's services need besides.
struct LonghornConfig {
  std::string sync_listen;  // of its HTTP file service; empty: off
  // Where transfers from other managers are received, both included.
  uint16_t port_first = 0;
  uint16_t port_last = 0;
  std::string disk_uuid;  // that the one disk must have; empty: any
  // The IP address where others reach us; empty: that of the connection.
  std::string advertise;
  // The same for the control plane, which need not be in the network of
  // transfers: POD_IP of the environment, unless `advertise` is set.
  std::string outside;
  bool always_push = false;  // also between managers of ours, to measure it
};

struct HandoverConfig {
  bool automatic = false;
  std::chrono::milliseconds drain_timeout{0};
  std::chrono::milliseconds lease{0};
  std::chrono::milliseconds confirm_timeout{0};
};

// A value; made by LoadConfig, which has checked everything that can be
// checked without I/O.
struct Config {
  std::string state_dir;         // empty when ephemeral_state
  bool ephemeral_state = false;  // a private directory, removed at the end
  std::string manager_id;        // empty: generated, kept in state_dir
  std::vector<std::string> listen;
  std::string socket;       // empty: none
  std::string data_listen;  // empty: off
  std::vector<std::string> disk_paths;
  std::chrono::milliseconds check_interval{0};
  uint32_t file_mode = 0;
  manager::Limits limits;
  size_t readers_per_image = 0;
  std::chrono::milliseconds upload_expiry{0};
  std::chrono::milliseconds backoff_first{0};
  std::chrono::milliseconds backoff_max{0};
  std::string log_level;
  bool log_json = false;
  transfer::Options transfer;
  LonghornConfig longhorn;
  HandoverConfig handover;
  // Started as Longhorn's control plane does, by --sync-listen: other defaults
  // count, and the disks must be there from the start.
  bool longhorn_mode = false;
};

}  // namespace bim::daemon
