import { backups, expect, expectAllAccessible, section, test, told } from '../dashboard';
import { owner, turn } from '../sandbox';

test.use({ customer: 7 });

test.afterEach(() => turn('mend database'));

test('while the database is away every page says so, and each comes back with it', async ({ page, context, complaints }) => {
  await page.goto('/backups');
  await page.waitForLoadState('networkidle');
  const left = await context.newPage();
  await left.goto('/backups');
  await left.waitForLoadState('networkidle');
  await page.bringToFront();
  await turn('break database');

  // One that the browser loads.
  await backups(page, 'Daily backups').first().getByRole('link', { name: /^Details/ }).click();
  await expect(page.getByRole('heading', { name: 'This page cannot be shown right now' })).toBeVisible();
  expect(await told(page)).toMatchSnapshot('page-problem.aria.yml');
  await expectAllAccessible(page);

  // One that the server sends.
  const answer = await page.reload();
  expect(answer?.status()).toBe(503);
  expect(await told(page)).toMatchSnapshot('database-away.aria.yml');
  await expectAllAccessible(page);

  // One that was open already.
  await left.bringToFront();
  await expect(left.getByText('The connection is lost')).toBeVisible();

  await turn('mend database');
  await page.bringToFront();
  await page.getByRole('link', { name: 'Try again' }).click();
  await expect(page.getByRole('main')).toContainText('Daily backup');
  await left.bringToFront();
  await expect(left.getByText('The connection is lost')).toBeHidden();
  await expect(section(left, 'Your backups')).toBeVisible();
  expect(complaints.splice(0).filter((text) => !text.includes('503'))).toEqual([]);
});

test.describe('nobody', () => {
  test.use({ customer: 0 });

  test('is told why he cannot log in, and can as soon as the database is back', async ({ page }) => {
    await page.goto('/login');
    await turn('break database');
    await page.getByLabel('Email').fill(owner(7).email);
    await page.getByLabel('Password').fill(owner(7).password);
    await page.getByRole('button', { name: 'Log in' }).click();
    await expect(page.getByRole('alert')).toHaveText('Logging in does not work right now. Please try again in a minute.');
    await expectAllAccessible(page);
    await turn('mend database');
    await page.getByLabel('Email').fill(owner(7).email);
    await page.getByLabel('Password').fill(owner(7).password);
    await page.getByRole('button', { name: 'Log in' }).click();
    await expect(page).toHaveURL(/\/backups$/);
  });
});
