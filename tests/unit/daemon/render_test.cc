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
