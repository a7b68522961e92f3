#include "daemon/render.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace bim::daemon {
namespace {

using testing::HasSubstr;

v1::Image HalfDone() {
  v1::Image image;
  image.mutable_spec()->set_name("debian");
  image.mutable_spec()->set_uuid("u-1");
  image.set_state("in-progress");
  v1::Copy& ready = *image.add_copies();
  ready.set_disk_path("/disk1");
  ready.set_state("ready");
  v1::Copy& moving = *image.add_copies();
  moving.set_disk_path("/disk2");
  moving.set_state("in-progress");
  moving.set_progress(40);
  return image;
}

TEST(RenderImages, IsOneLineAnImage) {
  v1::ListResponse list;
  *list.add_images() = HalfDone();
  const std::string table = RenderImages(list);
  EXPECT_THAT(table, HasSubstr("NAME    UUID  STATE        PROGRESS  COPIES"));
  EXPECT_THAT(table, HasSubstr("debian  u-1   in-progress       70%     1/2"));
}

TEST(RenderState, SaysWhy) {
  v1::Image image = HalfDone();
  EXPECT_EQ(RenderState(image), "in-progress 70%");
  image.set_state("failed");
  image.set_message("cannot reach x");
  EXPECT_EQ(RenderState(image), "failed: cannot reach x");
}

TEST(RenderImage, ShowsTheNextAttempt) {
  v1::Image image = HalfDone();
  v1::Copy& copy = *image.mutable_copies(1);
  copy.set_state("failed");
  copy.set_message("404");
  copy.set_attempts(2);
  copy.mutable_next_attempt()->set_seconds(1'700'000'000);
  copy.mutable_next_attempt()->set_nanos(5);
  EXPECT_THAT(RenderImage(image),
              HasSubstr("404; attempt 3 at 2023-11-14T22:13:20Z"));
}

TEST(RenderImage, ShowsWhatTheTransferDid) {
  v1::Image image = HalfDone();
  image.mutable_spec()->mutable_source()->add_peers("10.0.0.1:9500");
  image.mutable_spec()->mutable_source()->add_peers("10.0.0.2:9500");
  v1::Copy& ready = *image.mutable_copies(0);
  ready.set_origin("peer");
  ready.set_reused_bytes(512);
  ready.set_sha512_pending(true);
  ready.set_message("m");
  v1::Copy& moving = *image.mutable_copies(1);
  moving.set_wire_bytes(1024);
  moving.set_encoding("xz");
  const std::string unknown_size = RenderImage(image);
  moving.set_encoded_size(2048);
  const std::string text = RenderImage(image);
  EXPECT_THAT(text, HasSubstr("Peer:          10.0.0.2:9500\n"));
  EXPECT_THAT(text, HasSubstr("m; SHA-512 is being computed anew"));
  EXPECT_THAT(text, HasSubstr("512 B"));
  EXPECT_THAT(text, HasSubstr(" 1.0 KiB of 2.0 KiB xz "));
  EXPECT_THAT(unknown_size, HasSubstr(" 1.0 KiB xz "));
  image.mutable_spec()->mutable_source()->Clear();
  image.mutable_spec()->mutable_source()->set_upload(true);
  EXPECT_THAT(RenderImage(image), HasSubstr("Source:        an upload\n"));
}

TEST(RenderLimits, IsOneLineALimit) {
  v1::Limits limits;
  limits.set_download_rate(100 << 20);
  limits.set_transfers(8);
  const std::string text = RenderLimits(limits);
  EXPECT_THAT(text, HasSubstr("download-rate         100.0 MiB/s\n"));
  EXPECT_THAT(text, HasSubstr("peer-rate                no limit\n"));
  EXPECT_THAT(text, HasSubstr("transfers                       8\n"));
}

TEST(ToJson, HasSnakeCaseKeysAndEveryField) {
  const auto json = nlohmann::json::parse(ToJson(HalfDone(), false));
  EXPECT_EQ(json["spec"]["name"], "debian");
  EXPECT_EQ(json["current_sha512"], "");
  EXPECT_EQ(json["virtual_size"], "0");
  EXPECT_EQ(json["copies"][1]["progress"], 40);
  EXPECT_EQ(ToJson(HalfDone(), false).find('\n'), std::string::npos);
}

}  // namespace
}  // namespace bim::daemon
