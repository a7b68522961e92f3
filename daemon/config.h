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

// A value; made by LoadConfig, which has checked everything that can be
// checked without I/O.
struct Config {
  std::string state_dir;
  std::string manager_id;  // empty: generated, kept in state_dir
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
};

}  // namespace bim::daemon
