#include "pkg/longhorn/file_info.h"

#include <gtest/gtest.h>

#include <vector>

namespace bim::longhorn {
namespace {

using manager::CopyState;
using nlohmann::ordered_json;

base::Digest Digest(char digit) {
  return *base::Digest::FromHex(base::DigestAlgorithm::kSha512,
                                std::string(128, digit));
}

// Everything is set, whatever the state.
manager::DirectedStatus Full(CopyState state) {
  manager::DirectedStatus status;
  status.name = "debian";
  status.uuid = "u-1";
  status.expected_sha512 = Digest('a');
  status.current_sha512 = Digest('b');
  status.size = 4096;
  status.virtual_size = 8192;
  status.sender = "10.0.0.1:9502";
  status.readers = 3;
  status.mtime_ns = 1'700'000'000'500'000'000;
  status.copy.disk_uuid = "disk-1";
  status.copy.disk_path = "/mnt/disk-1";
  status.copy.state = state;
  status.copy.message = "what happened";
  status.copy.progress = 50;
  status.copy.processed_bytes = 2048;
  status.copy.real_size = 1024;
  status.copy.file_path = "/mnt/disk-1/backing-images/debian-u-1/backing";
  return status;
}

const std::vector<CopyState> kStates = {
    CopyState::kPending, CopyState::kStarting, CopyState::kInProgress,
    CopyState::kReady,   CopyState::kFailed,   CopyState::kUnknown};

TEST(FileInfoTest, ReadyInFull) {
  EXPECT_EQ(ToText(FileInfo(Full(CopyState::kReady), "/data/x")),
            "{\"diskUUID\":\"disk-1\","
            "\"expectedChecksum\":\"" +
                std::string(128, 'a') +
                "\",\"filePath\":\"/data/x\","
                "\"uuid\":\"u-1\","
                "\"size\":4096,"
                "\"virtualSize\":8192,"
                "\"realSize\":1024,"
                "\"state\":\"ready\","
                "\"progress\":50,"
                "\"processedSize\":4096,"
                "\"modificationTime\":\"2023-11-14 22:13:20.5 +0000 UTC\","
                "\"currentChecksum\":\"" +
                std::string(128, 'b') +
                "\",\"message\":\"\","
                "\"sendingReference\":3}\n");
}

TEST(FileInfoTest, KeysAndTypesInEveryState) {
  const std::pair<const char*, ordered_json::value_t> expected[] = {
      {"diskUUID", ordered_json::value_t::string},
      {"expectedChecksum", ordered_json::value_t::string},
      {"filePath", ordered_json::value_t::string},
      {"uuid", ordered_json::value_t::string},
      {"size", ordered_json::value_t::number_unsigned},
      {"virtualSize", ordered_json::value_t::number_unsigned},
      {"realSize", ordered_json::value_t::number_unsigned},
      {"state", ordered_json::value_t::string},
      {"progress", ordered_json::value_t::number_unsigned},
      {"processedSize", ordered_json::value_t::number_unsigned},
      {"modificationTime", ordered_json::value_t::string},
      {"currentChecksum", ordered_json::value_t::string},
      {"message", ordered_json::value_t::string},
      {"sendingReference", ordered_json::value_t::number_unsigned}};
  for (const CopyState state : kStates) {
    for (const bool full : {true, false}) {
      manager::DirectedStatus status;
      if (full) status = Full(state);
      status.copy.state = state;
      // As it is read by others: numbers are integers there.
      const auto info = ordered_json::parse(ToText(FileInfo(status, "/p")));
      ASSERT_TRUE(info.is_object());
      ASSERT_EQ(info.size(), std::size(expected));
      size_t i = 0;
      for (const auto& [key, value] : info.items()) {
        EXPECT_EQ(key, expected[i].first);
        EXPECT_EQ(value.type(), expected[i].second) << key;
        ++i;
      }
    }
  }
}

TEST(FileInfoTest, WhatStaysInEveryState) {
  for (const CopyState state : kStates) {
    const auto info = FileInfo(Full(state), "/p");
    EXPECT_EQ(info["state"], std::string(CopyStateName(state)));
    EXPECT_EQ(info["diskUUID"], "disk-1");
    EXPECT_EQ(info["uuid"], "u-1");
    EXPECT_EQ(info["filePath"], "/p");  // the caller's, not ours
    EXPECT_EQ(info["size"], 4096);
    EXPECT_EQ(info["virtualSize"], 8192);
    EXPECT_EQ(info["progress"], 50);
    EXPECT_EQ(info["sendingReference"], 3);
    EXPECT_EQ(info["expectedChecksum"], std::string(128, 'a'));
    EXPECT_EQ(info["currentChecksum"], std::string(128, 'b'));
  }
}

TEST(FileInfoTest, StatesByName) {
  const char* const names[] = {"pending", "starting", "in-progress",
                               "ready",   "failed",   "unknown"};
  for (size_t i = 0; i < kStates.size(); ++i) {
    EXPECT_EQ(FileInfo(Full(kStates[i]), "/p")["state"], names[i]);
  }
}

// Whoever reads it takes any text for an error.
TEST(FileInfoTest, AMessageOnlyWhenItIsWrong) {
  for (const CopyState state : kStates) {
    const bool wrong =
        state == CopyState::kFailed || state == CopyState::kUnknown;
    EXPECT_EQ(FileInfo(Full(state), "/p")["message"],
              wrong ? "what happened" : "")
        << CopyStateName(state);
  }
}

TEST(FileInfoTest, WhatOnlyAReadyFileHas) {
  for (const CopyState state : kStates) {
    const auto info = FileInfo(Full(state), "/p");
    const bool ready = state == CopyState::kReady;
    EXPECT_EQ(info["realSize"], ready ? 1024 : 0) << CopyStateName(state);
    EXPECT_EQ(info["modificationTime"],
              ready ? "2023-11-14 22:13:20.5 +0000 UTC" : "")
        << CopyStateName(state);
    // A ready file is processed, whatever came last.
    EXPECT_EQ(info["processedSize"], ready ? 4096 : 2048)
        << CopyStateName(state);
  }
}

TEST(FileInfoTest, NothingIsKnownYet) {
  const auto info = FileInfo(manager::DirectedStatus(), "");
  for (const char* key : {"diskUUID", "expectedChecksum", "filePath", "uuid",
                          "modificationTime", "currentChecksum", "message"}) {
    EXPECT_EQ(info[key], "") << key;
  }
  for (const char* key : {"size", "virtualSize", "realSize", "progress",
                          "processedSize", "sendingReference"}) {
    EXPECT_EQ(info[key], 0) << key;
  }
  EXPECT_EQ(info["state"], "pending");
}

TEST(FileInfoTest, LargeNumbers) {
  auto status = Full(CopyState::kReady);
  status.size = status.virtual_size = status.copy.real_size = 1ull << 62;
  const std::string text = ToText(FileInfo(status, "/p"));
  for (const char* key : {"size", "virtualSize", "realSize", "processedSize"}) {
    EXPECT_NE(text.find("\"" + std::string(key) + "\":4611686018427387904,"),
              text.npos)
        << key;
  }
}

TEST(FileInfoTest, OneLineOfValidJson) {
  auto status = Full(CopyState::kFailed);
  status.copy.message = "a\nb\"c\\d\x01 \xff\xc3( \xc3\xa4";
  const std::string text = ToText(FileInfo(status, "/p\xfe"));
  EXPECT_EQ(text.find('\n'), text.size() - 1);
  const auto parsed = ordered_json::parse(text);
  EXPECT_EQ(parsed["message"],
            "a\nb\"c\\d\x01 \xef\xbf\xbd\xef\xbf\xbd( \xc3\xa4");
  EXPECT_EQ(parsed["filePath"], "/p\xef\xbf\xbd");
}

}  // namespace
}  // namespace bim::longhorn
