#include "pkg/manager/desired.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "pkg/meta/version.h"
#include "tests/unit/store/scratch.h"

namespace bim::manager {
namespace {

using base::Code;
using nlohmann::json;

Desired Full() {
  Desired desired;
  desired.spec.name = "debian-12";
  desired.spec.uuid = "u-1";
  desired.spec.source = {"https://x.example/a.qcow2?token=\"s\"", "cred"};
  desired.spec.sha512 = test::Sha512("a");
  desired.spec.sha256 = test::Sha256("b");
  desired.spec.disks = {"disk-1", "disk-2"};
  desired.spec.size = uint64_t{3} << 41;
  desired.removing = true;
  desired.attempts = 4'000'000'000u;
  desired.permanent = true;
  desired.proven = test::Sha512("c");
  desired.last_error = "line\nbreak \xc3\xa9";
  desired.next_attempt = TimePoint(std::chrono::nanoseconds(1'795'218'514'567));
  return desired;
}

TEST(DesiredTest, RoundTrips) {
  const Desired full = Full();
  const auto back = DecodeDesired(EncodeDesired(full));
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  EXPECT_EQ(*back, full);
  Desired least;
  least.spec.name = "a";
  least.spec.uuid = "b";
  least.spec.all_disks = true;
  const auto again = DecodeDesired(EncodeDesired(least));
  ASSERT_TRUE(again.ok()) << again.status().ToString();
  EXPECT_EQ(*again, least);
}

TEST(DesiredTest, CutOffAtEveryByteIsDataLoss) {
  const std::string text = EncodeDesired(Full());
  for (size_t length = 0; length + 1 < text.size(); ++length) {
    ASSERT_EQ(DecodeDesired(text.substr(0, length)).status().code(),
              Code::kDataLoss)
        << length;
  }
}

TEST(DesiredTest, EveryMissingOrOddFieldIsDataLoss) {
  const json whole = json::parse(EncodeDesired(Full()));
  for (const auto& [key, value] : whole.items()) {
    json without = whole;
    without.erase(key);
    const auto missing = DecodeDesired(without.dump());
    // Optional ones may be absent; "version" is for the message only.
    if (key != "sha512" && key != "sha256" && key != "nextAttemptNs" &&
        key != "version" && key != "peers" && key != "upload" &&
        key != "directed" && key != "proven") {
      EXPECT_EQ(missing.status().code(), Code::kDataLoss) << key;
    }
    json odd = whole;
    odd[key] = json::object();
    if (key == "version") continue;
    EXPECT_EQ(DecodeDesired(odd.dump()).status().code(), Code::kDataLoss)
        << key;
  }
}

TEST(DesiredTest, BadDigestsAndNamesAreDataLoss) {
  const json whole = json::parse(EncodeDesired(Full()));
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{
           {"sha512", "xyz"}, {"sha256", ""}, {"name", "../x"}, {"uuid", ""}}) {
    json odd = whole;
    odd[key] = value;
    EXPECT_EQ(DecodeDesired(odd.dump()).status().code(), Code::kDataLoss)
        << key;
  }
}

TEST(DesiredTest, NewerIsRefusedByName) {
  json newer = json::parse(EncodeDesired(Full()));
  newer["version"] = meta::kDiskFormatVersion + 5;
  newer["minVersion"] = meta::kDiskFormatVersion + 1;
  const auto got = DecodeDesired(newer.dump());
  EXPECT_EQ(got.status().code(), Code::kFailedPrecondition);
  EXPECT_NE(
      got.status().message().find(std::to_string(meta::kDiskFormatVersion + 5)),
      std::string::npos);
  newer["minVersion"] = meta::kDiskFormatVersion;
  newer["more"] = 1;
  EXPECT_TRUE(DecodeDesired(newer.dump()).ok());
}

TEST(DesiredTest, AnyBytesDoNotThrow) {
  Desired desired = Full();
  desired.last_error = "caf\xe9 \xff";
  desired.spec.source.url = "http://x/\xe9";
  std::string text;
  ASSERT_NO_THROW({ text = EncodeDesired(desired); });
  EXPECT_TRUE(DecodeDesired(text).ok());
}

}  // namespace
}  // namespace bim::manager
