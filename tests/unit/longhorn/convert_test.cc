#include "pkg/longhorn/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace bim::longhorn {
namespace {

using base::Code;
using manager::CopyState;
using ::testing::HasSubstr;

const std::string kHex(128, 'a');

::bimrpc::BackingImageSpec Spec() {
  ::bimrpc::BackingImageSpec spec;
  spec.set_name("a");
  spec.set_uuid("u");
  spec.set_size(1024);
  spec.set_checksum(kHex);
  return spec;
}

TEST(ConvertTest, ToDirected) {
  const auto directed = ToDirected(true, Spec());
  ASSERT_TRUE(directed.ok()) << directed.status().ToString();
  EXPECT_EQ(directed->name, "a");
  EXPECT_EQ(directed->uuid, "u");
  EXPECT_EQ(directed->size, 1024u);
  ASSERT_TRUE(directed->sha512.has_value());
  EXPECT_EQ(directed->sha512->Hex(), kHex);
  EXPECT_EQ(directed->disk, "");
  EXPECT_EQ(directed->source, manager::SourceSpec());
  auto spec = Spec();
  spec.clear_checksum();
  spec.clear_size();
  EXPECT_FALSE(ToDirected(true, spec)->sha512.has_value());
  EXPECT_EQ(ToDirected(true, spec)->size, 0u);
}

TEST(ConvertTest, WhatIsMissingOrOddIsNamed) {
  const auto said = [](auto change, const std::string& words) {
    auto spec = Spec();
    change(spec);
    const auto directed = ToDirected(true, spec);
    EXPECT_EQ(directed.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(directed.status().message(), HasSubstr(words));
  };
  said([](auto& s) { s.clear_name(); }, "spec.name is missing");
  said([](auto& s) { s.clear_uuid(); }, "spec.uuid is missing");
  said([](auto& s) { s.set_size(-512); }, "spec.size");
  said([](auto& s) { s.set_checksum("abc"); }, "spec.checksum");
  EXPECT_EQ(ToDirected(false, Spec()).status().message(), "spec is missing");
}

TEST(ConvertTest, ToProto) {
  manager::DirectedStatus status;
  status.name = "a";
  status.uuid = "u";
  status.size = 2048;
  status.virtual_size = 4096;
  status.sender = "10.0.0.1:8000";
  status.readers = 2;
  status.expected_sha512 =
      *base::Digest::FromHex(base::DigestAlgorithm::kSha512, kHex);
  status.current_sha512 = *base::Digest::FromHex(base::DigestAlgorithm::kSha512,
                                                 std::string(128, 'b'));
  status.copy.state = CopyState::kReady;
  status.copy.progress = 100;
  status.copy.real_size = 512;
  status.copy.message = "of no interest";
  ::bimrpc::BackingImageResponse proto;
  ToProto(status, &proto);
  EXPECT_EQ(proto.spec().name(), "a");
  EXPECT_EQ(proto.spec().uuid(), "u");
  EXPECT_EQ(proto.spec().size(), 2048);
  EXPECT_EQ(proto.spec().virtualsize(), 4096);
  EXPECT_EQ(proto.spec().realsize(), 512);
  EXPECT_EQ(proto.spec().checksum(), kHex);
  EXPECT_EQ(proto.status().state(), "ready");
  EXPECT_EQ(proto.status().error_msg(), "");
  EXPECT_EQ(proto.status().checksum(), std::string(128, 'b'));
  EXPECT_EQ(proto.status().progress(), 100);
  EXPECT_EQ(proto.status().sending_reference(), 2);
  EXPECT_EQ(proto.status().sender_manager_address(), "10.0.0.1:8000");
}

// Callers take any text there for a failure.
TEST(ConvertTest, OnlyFailuresHaveAMessage) {
  for (const CopyState state :
       {CopyState::kPending, CopyState::kStarting, CopyState::kInProgress,
        CopyState::kReady, CopyState::kFailed, CopyState::kUnknown}) {
    manager::DirectedStatus status;
    status.copy.state = state;
    status.copy.message = "why\xff";
    ::bimrpc::BackingImageResponse proto;
    ToProto(status, &proto);
    EXPECT_EQ(proto.status().state(), manager::CopyStateName(state));
    const bool tells =
        state == CopyState::kFailed || state == CopyState::kUnknown;
    EXPECT_EQ(proto.status().error_msg(), tells ? "why\uFFFD" : "");
  }
}

}  // namespace
}  // namespace bim::longhorn
